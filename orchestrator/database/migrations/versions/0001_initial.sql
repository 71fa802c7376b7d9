-- The truth about execution. Optuna's own tables (schema public) are a projection of these.
-- json, not jsonb, where people read the keys: jsonb forgets their order.

CREATE TYPE study_state AS ENUM (
  'open',      -- -> stopped by a person, complete when the budget is used, failed when nothing can be learnt
  'stopped',   -- -> open by `resume`
  'complete',  -- -> open by `resume` with a larger budget
  'failed'
);

CREATE TYPE trial_state AS ENUM (
  'waiting',     -- planned: -> running when a worker opens it
  'running',     -- open: its units are waiting, leased or ended
  'complete', 'stopped', 'diverged', 'infeasible', 'failed',  -- terminal
  'cancelled'    -- budget or `stop`; -> waiting by `resume`
);

CREATE TYPE unit_state AS ENUM ('waiting', 'leased', 'done', 'diverged', 'infeasible', 'failed', 'cancelled');

CREATE TABLE snapshot (
  sha256      text PRIMARY KEY,                    -- of the canonical JSONL
  rows        integer NOT NULL CHECK (rows > 0),
  bytes       bigint NOT NULL,
  content     bytea,                               -- zlib; NULL: too large, every worker reads and verifies the source
  created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE study (
  id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name          text NOT NULL UNIQUE,
  digest        text NOT NULL,                     -- of the spec without its budget
  spec          json NOT NULL,
  source        text NOT NULL,                     -- the study file as written
  model         json NOT NULL,                    -- contract.ModelPin
  snapshot      text NOT NULL REFERENCES snapshot,
  labels        json NOT NULL,                    -- class names in logit order
  folder        text NOT NULL,                     -- relative paths of the study file are relative to this
  plan          json NOT NULL,                    -- {folds, assignment}
  plan_digest   text NOT NULL,
  floor         json,                             -- what class frequencies alone reach on these folds
  state         study_state NOT NULL DEFAULT 'open',
  trials_total  integer NOT NULL CHECK (trials_total > 0),
  hours_total   double precision CHECK (hours_total > 0),
  suggestions   integer NOT NULL DEFAULT 0,        -- asked so far; the next one's seed derives from it
  noted         text,                              -- digest of the note that the dashboard shows
  version       text NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE trial (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  study          bigint NOT NULL REFERENCES study ON DELETE CASCADE,
  number         integer,                          -- Optuna's trial number; NULL: not in Optuna (yet)
  searched       boolean NOT NULL,                 -- counts towards the budget; the default configuration may not
  is_default     boolean NOT NULL DEFAULT false,
  in_space       boolean NOT NULL DEFAULT true,    -- false: Optuna never hears of it
  origin         text NOT NULL CHECK (origin IN ('default', 'grid', 'random', 'model')),  -- who proposed it
  params         json NOT NULL,
  settings       json NOT NULL,                   -- every hyperparameter, resolved
  configuration  text NOT NULL,                    -- digest of settings
  state          trial_state NOT NULL DEFAULT 'waiting',
  value          double precision,
  reason         text NOT NULL DEFAULT '',
  duplicate_of   bigint REFERENCES trial ON DELETE CASCADE,
  generation     integer NOT NULL DEFAULT 0,       -- raised by `resume`: a new Optuna trial stands for it
  told           boolean NOT NULL DEFAULT false,   -- Optuna knows the terminal state
  created_at     timestamptz NOT NULL DEFAULT now(),
  opened_at      timestamptz,
  closed_at      timestamptz,
  UNIQUE (study, number),
  CHECK ((state = 'complete') = (value IS NOT NULL))
);

-- No configuration is trained twice.
CREATE UNIQUE INDEX trial_configuration ON trial (study, configuration) WHERE duplicate_of IS NULL;

CREATE TABLE worker (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name        text NOT NULL,
  host        text NOT NULL,
  pid         integer NOT NULL,
  device      text NOT NULL,
  version     text NOT NULL,
  capacity    integer NOT NULL DEFAULT 1,          -- units it can train at once
  started_at  timestamptz NOT NULL DEFAULT now(),
  seen_at     timestamptz NOT NULL DEFAULT now(),
  left_at     timestamptz,
  farewell    text NOT NULL DEFAULT ''             -- why it left
);

-- One worker a GPU: whoever holds the row until `expires_at` uses it. The id is the GPU's UUID, which is the same from
-- every container on a host, where host names differ.
CREATE TABLE device (
  id          text PRIMARY KEY,
  host        text NOT NULL,
  worker      bigint NOT NULL REFERENCES worker ON DELETE CASCADE,
  expires_at  timestamptz NOT NULL
);

CREATE TABLE unit (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  study        bigint NOT NULL REFERENCES study ON DELETE CASCADE,
  trial        bigint NOT NULL REFERENCES trial ON DELETE CASCADE,
  repeat       integer NOT NULL,
  fold         integer NOT NULL,
  state        unit_state NOT NULL DEFAULT 'waiting',
  attempts     integer NOT NULL DEFAULT 0,         -- times leased
  charges      integer NOT NULL DEFAULT 0,         -- failures that were its own
  vanished     integer NOT NULL DEFAULT 0,         -- leases in a row that ran out without a reported epoch
  lease_epoch  bigint NOT NULL DEFAULT 0,          -- the fencing token: raised with every lease
  worker       bigint REFERENCES worker ON DELETE SET NULL,
  expires_at   timestamptz,
  seconds      double precision NOT NULL DEFAULT 0, -- device seconds of reported epochs
  reason       text NOT NULL DEFAULT '',
  evidence     text NOT NULL DEFAULT '',
  started_at   timestamptz,
  ended_at     timestamptz,
  UNIQUE (trial, repeat, fold),
  CHECK ((state = 'leased') = (expires_at IS NOT NULL))
);

CREATE INDEX unit_work ON unit (study, state);

CREATE TABLE result (
  unit         bigint NOT NULL REFERENCES unit ON DELETE CASCADE,
  epoch        integer NOT NULL CHECK (epoch > 0),
  lease_epoch  bigint NOT NULL,
  train_loss   double precision NOT NULL,
  seconds      double precision NOT NULL,
  tallies      json NOT NULL,
  nats         bytea NOT NULL,                     -- float32 for each validation item
  counts       bytea NOT NULL,                     -- float32 for each validation item
  logits       bytea,                              -- float16, items x classes, at the reported epoch
  reported_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (unit, epoch)
);

-- What was accepted is never replaced, and what ended does not begin again.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'an accepted result is never replaced (unit %, epoch %)', OLD.unit, OLD.epoch;
END $$;

CREATE TRIGGER result_is_final BEFORE UPDATE ON result FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE FUNCTION guard_trial_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.state = NEW.state
     OR OLD.state IN ('waiting', 'running')
     OR (OLD.state = 'cancelled' AND NEW.state = 'waiting') THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'trial % is %, it cannot become %', OLD.id, OLD.state, NEW.state;
END $$;

CREATE TRIGGER trial_state_guard BEFORE UPDATE OF state ON trial
  FOR EACH ROW EXECUTE FUNCTION guard_trial_state();

CREATE FUNCTION guard_unit_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.lease_epoch < OLD.lease_epoch THEN
    RAISE EXCEPTION 'unit %: a fencing token never falls (% < %)', OLD.id, NEW.lease_epoch, OLD.lease_epoch;
  END IF;
  IF OLD.state = NEW.state
     OR OLD.state IN ('waiting', 'leased')
     OR (OLD.state = 'cancelled' AND NEW.state = 'waiting') THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'unit % is %, it cannot become %', OLD.id, OLD.state, NEW.state;
END $$;

CREATE TRIGGER unit_state_guard BEFORE UPDATE OF state, lease_epoch ON unit
  FOR EACH ROW EXECUTE FUNCTION guard_unit_state();
