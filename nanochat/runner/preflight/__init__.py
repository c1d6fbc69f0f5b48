"""Before the first stage: pin hub data, compile the plan, check data, memory, disk and MLflow."""
