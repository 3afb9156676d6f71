// Asks a RateLimitPolicy whether a call may be made, from Go: one FCALL, no library but a Redis client.
// Usage: go run . REDIS_URL NAMESPACE POLICY SUBJECT
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

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

	reply, err := client.Do(context.Background(), "FCALL", "shipkeeper_acquire", 1, state, config, 1, "").Slice()
	if err != nil {
		log.Fatalf("no verdict, so the call is not made: %v", err)
	}
	if reply[0].(int64) == 1 {
		fmt.Println("allowed")
		return
	}
	wait := time.Duration(reply[3].(int64)-reply[4].(int64)) * time.Millisecond
	fmt.Printf("denied by %v: %v, retry after %v\n", reply[1], reply[2], wait)
}
