-- What the fine-tunes are measured against: trials that are no part of the search, and never the best one.
ALTER TABLE trial DROP CONSTRAINT trial_origin_check;
ALTER TABLE trial ADD CONSTRAINT trial_origin_check
  CHECK (origin IN ('default', 'baseline', 'grid', 'random', 'model'));

DROP INDEX trial_best;
CREATE INDEX trial_best ON trial (study, value)
  WHERE value IS NOT NULL AND duplicate_of IS NULL AND origin <> 'baseline';

CREATE INDEX trial_baseline ON trial (study) WHERE origin = 'baseline';
