"""How it is made to happen: units, jobs and the journal."""
