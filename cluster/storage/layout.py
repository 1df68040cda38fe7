"""Names of the files and folders in a results directory."""

CELL, EPISODES, RESULT, ERROR, LOGGED = "cell.json", "episodes.parquet", "result.json", "error.json", "mlflow.json"
CHECKPOINT_FILES = ("checkpoint/model.safetensors", "checkpoint/config.json")
STATE = "checkpoint/state.pt"  # of a training that was interrupted
LIVE = "live.json"  # of a training that runs; removed when it ends
IDENTITY = "store.json"
FEATURES, LAUNCHES, WEIGHTS, LEASES, TUNE, PARTS = "features", "launches", "weights", ".leases", ".tune", "parts"
