"""A recipe becomes a bundle: the stages in order, each made once and kept. The only orchestrator."""
