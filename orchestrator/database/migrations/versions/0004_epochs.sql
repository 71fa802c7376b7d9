-- Which trial's folds are a trial's results, and up to which epoch: under `share_epochs` one run answers for several.
ALTER TABLE trial ADD COLUMN run bigint REFERENCES trial ON DELETE CASCADE;  -- the trial that trained; NULL: itself
ALTER TABLE trial ADD COLUMN epoch integer;                                  -- the epoch that counts; NULL: the last
UPDATE trial SET run = duplicate_of WHERE duplicate_of IS NOT NULL;

-- Without it every row of a study that is deleted searches the table for rows that it answers for.
CREATE INDEX trial_run ON trial (run) WHERE run IS NOT NULL;
