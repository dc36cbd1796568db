"""Studies on other machines: one file a back end, found by name; what is common to all lies in job.py, submit.py and retry.py."""
