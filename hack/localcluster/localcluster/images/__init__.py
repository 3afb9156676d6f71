"""Images for the cluster, also where no image registry can be reached."""
