"""Rate limits: the policy compiler, the Redis Function library, its store and the client an application uses."""
