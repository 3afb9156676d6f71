// Asks a RateLimitPolicy whether a call may be made, from Go: one FCALL, no library but a Redis client.
// Usage: go run . REDIS_URL NAMESPACE POLICY SUBJECT
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

// The part of a verdict that this program needs; docs/limits.md describes all of it.
type verdict struct {
	Allowed      bool
	Rule, Reason string
	RetryAt, Now int64
}

func main() {
	options, err := redis.ParseURL(os.Args[1])
	if err != nil {
		log.Fatal("the first argument is not a Redis URL")
	}
	options.MaxRetries = -1 // A call whose answer was lost may have been charged: never repeat it.
	client := redis.NewClient(options)
	namespace, policy, subject := os.Args[2], os.Args[3], os.Args[4]
	state := fmt.Sprintf("shipkeeper:{%s}:state:%s:%s", namespace, policy, subject)
	config := fmt.Sprintf("shipkeeper:{%s}:config:%s", namespace, policy)

	reply, err := client.Do(context.Background(), "FCALL", "shipkeeper_acquire", 1, state, config).Text()
	if err != nil {
		log.Fatalf("no verdict, so the call is not made: %v", err)
	}
	var told verdict
	if err := json.Unmarshal([]byte(reply), &told); err != nil {
		log.Fatalf("no verdict, so the call is not made: %v", err)
	}
	if told.Allowed {
		fmt.Println("allowed")
		return
	}
	wait := time.Duration(told.RetryAt-told.Now) * time.Millisecond
	fmt.Printf("denied by %v: %v, retry after %v\n", told.Rule, told.Reason, wait)
}
