-- An independent log in the same transactions: what the program writes, beside what it later says it wrote.
-- A row's live_epoch and state are those of its unit at the moment of writing, under the program's own row lock.
CREATE SCHEMA witness;

CREATE TABLE witness.event (
  seq          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at           timestamptz NOT NULL DEFAULT clock_timestamp(),
  what         text NOT NULL,      -- accepted, deleted, leased, unit, trial
  trial        bigint,
  unit         bigint,
  epoch        integer,
  lease_epoch  bigint,
  live_epoch   bigint,
  state        text
);

CREATE FUNCTION witness.of_result() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    INSERT INTO witness.event (what, unit, epoch, lease_epoch) VALUES ('deleted', OLD.unit, OLD.epoch, OLD.lease_epoch);
    RETURN OLD;
  END IF;
  INSERT INTO witness.event (what, trial, unit, epoch, lease_epoch, live_epoch, state)
    SELECT 'accepted', u.trial, NEW.unit, NEW.epoch, NEW.lease_epoch, u.lease_epoch, u.state
    FROM foldtune.unit u WHERE u.id = NEW.unit;
  RETURN NEW;
END $$;

CREATE FUNCTION witness.of_unit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.lease_epoch <> OLD.lease_epoch THEN
    INSERT INTO witness.event (what, trial, unit, lease_epoch, live_epoch, state)
      VALUES ('leased', NEW.trial, NEW.id, NEW.lease_epoch, OLD.lease_epoch, OLD.state);
  ELSIF NEW.state <> OLD.state THEN
    INSERT INTO witness.event (what, trial, unit, lease_epoch, live_epoch, state)
      VALUES ('unit', NEW.trial, NEW.id, NEW.lease_epoch, OLD.lease_epoch, NEW.state);
  END IF;
  RETURN NEW;
END $$;

CREATE FUNCTION witness.of_trial() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.state <> OLD.state THEN
    INSERT INTO witness.event (what, trial, state) VALUES ('trial', NEW.id, NEW.state);
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER witness_result AFTER INSERT OR DELETE ON foldtune.result
  FOR EACH ROW EXECUTE FUNCTION witness.of_result();
CREATE TRIGGER witness_unit AFTER UPDATE ON foldtune.unit FOR EACH ROW EXECUTE FUNCTION witness.of_unit();
CREATE TRIGGER witness_trial AFTER UPDATE ON foldtune.trial FOR EACH ROW EXECUTE FUNCTION witness.of_trial();
