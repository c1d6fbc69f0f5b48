"""Places that data come from, other than local files and the Hugging Face hub: this installation, the web, buckets."""
