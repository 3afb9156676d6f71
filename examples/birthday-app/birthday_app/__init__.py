"""Birthday messages to contacts, under quotas: the sample application that Shipkeeper looks after."""

VERSION = "2.0.0"
