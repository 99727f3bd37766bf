"""The gateway's promise as an exercise: faults under load, against a throw-away set-up on this machine."""
