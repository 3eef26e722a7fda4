// Draws one picture with an adapter, and tells how far it is.
//
//	buf generate ../../../proto     # with buf.gen.yaml here: the plugins protoc-gen-go and protoc-gen-go-grpc
//	go mod init example && go mod tidy
//	go run . "a red apple" apple.png
//
// LORAMUX_SERVER and LORAMUX_TOKEN are read as the command line reads them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	pb "example/gen/loramux/v1"
)

func main() {
	target := os.Getenv("LORAMUX_SERVER")
	if target == "" {
		target = "127.0.0.1:50051"
	}
	connection, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if token := os.Getenv("LORAMUX_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	if err := draw(ctx, pb.NewGenerationServiceClient(connection), os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func draw(ctx context.Context, client pb.GenerationServiceClient, prompt, file string) error {
	weight, steps, seed := 0.8, int32(8), int64(7)
	stream, err := client.GenerateStream(ctx, &pb.GenerateRequest{
		Prompt: prompt,
		Blend:  &pb.Blend{Entries: []*pb.BlendEntry{{Adapter: "ink", Weight: &weight}}},
		Steps:  &steps,
		Seed:   &seed,
	})
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
