"""From a bundle to a service: prediction, HTTP scoring, batch jobs, and configurations for other servers."""
