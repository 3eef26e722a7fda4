// Draws one picture with a blend of two adapters, and tells how far it is.
//
//   npm install && npm run stubs && npm run build
//   node out/generate.js "a red apple" apple.png
//
// LORAMUX_SERVER, LORAMUX_TOKEN and LORAMUX_CA are read as the command line reads them.
import { readFileSync, writeFileSync } from "node:fs";
import { credentials, Metadata, status, type ServiceError } from "@grpc/grpc-js";
import { AdapterServiceClient, ListAdaptersRequest } from "./stubs/loramux/v1/adapter_service";
import { GenerateRequest, type GenerateEvent } from "./stubs/loramux/v1/generation";
import { GenerationServiceClient } from "./stubs/loramux/v1/generation_service";

const target = process.env.LORAMUX_SERVER ?? "127.0.0.1:50051";
const channel = process.env.LORAMUX_CA
  ? credentials.createSsl(readFileSync(process.env.LORAMUX_CA))
  : credentials.createInsecure();
const metadata = new Metadata();
if (process.env.LORAMUX_TOKEN) metadata.set("authorization", `Bearer ${process.env.LORAMUX_TOKEN}`);

function listAdapters(): Promise<string[]> {
  const client = new AdapterServiceClient(target, channel);
  return new Promise((resolve, reject) =>
    client.listAdapters(ListAdaptersRequest.fromPartial({ pageSize: 100 }), metadata, (error, page) => {
      client.close();
      if (error) reject(error);
      else resolve(page.adapters.map((adapter) => adapter.name));
    }),
  );
}

function draw(prompt: string, adapters: string[]): Promise<Buffer> {
  const client = new GenerationServiceClient(target, channel);
  const entries = adapters.map((adapter) => ({ adapter, weight: 0.6 }));
  const request = GenerateRequest.fromPartial({ prompt, blend: { entries }, steps: 8, seed: 7n });
  const call = client.generateStream(request, metadata);
  return new Promise((resolve, reject) => {
    let picture = Buffer.alloc(0);
    call.on("data", (event: GenerateEvent) => {
      if (event.step) console.log(`step ${event.step.step} of ${event.step.total}`);
      if (event.image) picture = Buffer.from(event.image.data);
    });
    call.on("end", () => resolve(picture));
    call.on("error", (error: ServiceError) => reject(error));
  }).finally(() => client.close()) as Promise<Buffer>;
}

async function main(prompt: string, file: string): Promise<void> {
  const shelf = await listAdapters();
  console.log(`on the shelf: ${shelf.join(", ")}`);
  writeFileSync(file, await draw(prompt, shelf.slice(0, 2)));
  console.log(`wrote ${file}`);
}

main(process.argv[2] ?? "a red apple", process.argv[3] ?? "apple.png").catch((error: ServiceError) => {
  console.error(`${status[error.code] ?? "error"}: ${error.details ?? error.message}`);
  process.exit(1);
});
