"""From history and embeddings to each user's clusters."""
