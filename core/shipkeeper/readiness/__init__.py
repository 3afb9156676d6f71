"""The production-readiness scorecard: from what the live system shows to checks with evidence. Pure, no Kubernetes."""
