// Draws one picture with a blend of two adapters, and tells how far it is.
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//	go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
//	buf generate ../../../proto && go mod tidy
//	go run . "a red apple" apple.png
//
// LORAMUX_SERVER, LORAMUX_TOKEN and LORAMUX_CA are read as the command line reads them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "example/gen/loramux/v1"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: generate PROMPT FILE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		refusal := status.Convert(err)
		fmt.Fprintf(os.Stderr, "%s: %s\n", refusal.Code(), refusal.Message())
		os.Exit(1)
	}
}

func run(prompt, file string) error {
	connection, err := connect()
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if token := os.Getenv("LORAMUX_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	page, err := pb.NewAdapterServiceClient(connection).ListAdapters(ctx, &pb.ListAdaptersRequest{PageSize: 100})
	if err != nil {
		return err
	}
	var names []string
	for _, adapter := range page.Adapters {
		names = append(names, adapter.Name)
	}
	fmt.Println("on the shelf:", strings.Join(names, ", "))
	return draw(ctx, pb.NewGenerationServiceClient(connection), prompt, names[:min(2, len(names))], file)
}

func connect() (*grpc.ClientConn, error) {
	target, channel := os.Getenv("LORAMUX_SERVER"), insecure.NewCredentials()
	if target == "" {
		target = "127.0.0.1:50051"
	}
	if ca := os.Getenv("LORAMUX_CA"); ca != "" {
		read, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			return nil, err
		}
		channel = read
	}
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(channel),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

func draw(ctx context.Context, client pb.GenerationServiceClient, prompt string, adapters []string, file string) error {
	weight, steps, seed := 0.6, int32(8), int64(7)
	blend := &pb.Blend{}
	for _, adapter := range adapters {
		blend.Entries = append(blend.Entries, &pb.BlendEntry{Adapter: adapter, Weight: &weight})
	}
	request := &pb.GenerateRequest{Prompt: prompt, Blend: blend, Steps: &steps, Seed: &seed}
	stream, err := client.GenerateStream(ctx, request)
	if err != nil {
		return err
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if step := event.GetStep(); step != nil {
			fmt.Printf("step %d of %d\n", step.Step, step.Total)
		}
		if image := event.GetImage(); image != nil {
			if err := os.WriteFile(file, image.Data, 0o644); err != nil {
				return err
			}
			fmt.Println("wrote", file)
		}
	}
}
