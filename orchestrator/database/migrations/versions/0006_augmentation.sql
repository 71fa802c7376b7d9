-- Models that write training rows, and unlabelled rows for self-training: both belong to a study as its model and rows do.
ALTER TABLE study ADD COLUMN writers json NOT NULL DEFAULT '{}';  -- name -> contract.WriterPin
ALTER TABLE study ADD COLUMN pool text REFERENCES snapshot;       -- NULL: none
