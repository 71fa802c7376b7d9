-- The fence is (lease_epoch, token): after a failover that lost the last commits the same epoch may be granted again,
-- a token never.
ALTER TABLE unit ADD COLUMN token uuid;

-- What a unit is that nobody trains: one whose last epoch was accepted has nothing left to train, whoever had it.
CREATE FUNCTION state_at_rest(wanted bigint) RETURNS unit_state LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN EXISTS (
    SELECT 1 FROM unit u JOIN trial t ON t.id = u.trial JOIN result r ON r.unit = u.id
    WHERE u.id = wanted AND r.epoch = CAST(t.settings->>'epochs' AS integer)
  ) THEN CAST('done' AS unit_state) ELSE CAST('waiting' AS unit_state) END
$$;

-- One row for each time a unit was leased, and how that ended.
CREATE TABLE attempt (
  unit         bigint NOT NULL REFERENCES unit ON DELETE CASCADE,
  lease_epoch  bigint NOT NULL,
  number       integer NOT NULL,                   -- 1, 2, ...: the n-th lease of the unit
  worker       bigint REFERENCES worker ON DELETE SET NULL,
  granted_at   timestamptz NOT NULL DEFAULT now(),
  ended_at     timestamptz,
  cause        text,                               -- orchestrator.lifecycle.Cause; NULL while the lease lives
  charged      boolean NOT NULL DEFAULT false,     -- counted against the unit
  counted      integer NOT NULL DEFAULT 0,         -- last epoch whose device seconds were added to the unit's
  reason       text NOT NULL DEFAULT '',
  evidence     text NOT NULL DEFAULT '',           -- traceback and the trainer's last words
  PRIMARY KEY (unit, lease_epoch)
);

-- Trained weights and states to go on from. `place` is where the bytes are when they are not in `content`: relative to
-- the study's store, or an absolute path on `host` alone where the study has no shared one.
CREATE TABLE artifact (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  unit         bigint NOT NULL REFERENCES unit ON DELETE CASCADE,
  kind         text NOT NULL CHECK (kind IN ('resume', 'adapter')),
  epoch        integer NOT NULL CHECK (epoch >= 0),  -- epochs finished
  step         integer NOT NULL CHECK (step >= 0),
  lease_epoch  bigint NOT NULL,
  sha256       text NOT NULL,
  bytes        bigint NOT NULL,
  content      bytea,
  place        text,
  host         text,
  doomed       boolean NOT NULL DEFAULT false,     -- of no more use: nobody goes on from it, and `collect` deletes it
  created_at   timestamptz NOT NULL DEFAULT now(),
  UNIQUE (unit, kind, epoch, step),
  CHECK ((content IS NULL) <> (place IS NULL))
);

-- Folders of deleted studies, which may still hold files: in their store, and on machines that have yet to look.
CREATE TABLE leftover (
  folder       text PRIMARY KEY,                   -- name of the study's folder in every store
  store        text NOT NULL,                      -- of study.artifacts
  emptied      boolean NOT NULL DEFAULT false,     -- the shared store has nothing of it any more
  deleted_at   timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE artifact ALTER COLUMN content SET STORAGE EXTERNAL;  -- weights do not compress, trying costs CPU time

-- Where trained weights go, and how many trials keep theirs: {"store": "database" | absolute folder | URL, "keep": n,
-- "folder": the study's own in any store; another database may have a study of the same name}
ALTER TABLE study ADD COLUMN artifacts json NOT NULL DEFAULT '{"store": "database", "keep": 3}';

-- Which database this is, whatever host and port it is reached by: results that wait on a worker's disk are for it alone.
CREATE TABLE identity (id uuid PRIMARY KEY DEFAULT gen_random_uuid());
INSERT INTO identity DEFAULT VALUES;
