"""The verbs, one file each: they compose the stages inside one tracked run."""
