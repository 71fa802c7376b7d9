"""What foldtune itself costs for each trial: workers that call the product's own use cases, and train nothing."""
