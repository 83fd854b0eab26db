"""Query Rewards on KuaiRand-Pure: real users of a short-video feed, ten days of what they were shown and what they did."""
