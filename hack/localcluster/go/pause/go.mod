module shipkeeper.dev/hack/localcluster/pause

go 1.26.0
