-- Open and planned trials in their order, and how many there are of each state, without reading the others.
CREATE INDEX trial_states ON trial (study, state, id) INCLUDE (searched);

-- The one to beat, and those whose adapters stay.
CREATE INDEX trial_best ON trial (study, value) WHERE value IS NOT NULL AND duplicate_of IS NULL;

-- What Optuna has not heard of: next to nothing at any time, and asked for after every step of every worker.
CREATE INDEX trial_unshown ON trial (study) WHERE number IS NULL AND in_space AND state <> 'waiting';
CREATE INDEX trial_untold ON trial (study) WHERE NOT told AND state NOT IN ('waiting', 'running');

-- Without it every row of a study that is deleted searches the table for rows that repeat it.
CREATE INDEX trial_duplicate ON trial (duplicate_of) WHERE duplicate_of IS NOT NULL;
CREATE INDEX trial_default ON trial (study) WHERE is_default;

CREATE INDEX attempt_open ON attempt (unit) WHERE ended_at IS NULL;
CREATE INDEX unit_charged ON unit (trial) WHERE charges > 0;
