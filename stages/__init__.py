"""The steps dvc.yaml runs: one file per stage."""
