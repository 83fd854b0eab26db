"""Decision science of Query Rewards: rewards, priors, policies, quotas, sampling, learning. No service is called here."""
