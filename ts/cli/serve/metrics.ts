import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** The metrics at /metrics, in addition to the default ones of the process. */
export class Metrics {
  readonly registry = new Registry();
  readonly requests = new Counter({
    name: "vit_msn_requests_total",
    help: "Requests answered, by route and status",
    labelNames: ["route", "status"] as const,
    registers: [this.registry],
  });
  readonly request_seconds = new Histogram({
    name: "vit_msn_request_seconds",
    help: "Time from a request's headers to its answer",
    labelNames: ["route"] as const,
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly in_progress = new Gauge({
    name: "vit_msn_requests_in_progress",
    help: "Requests accepted and not answered yet",
    registers: [this.registry],
  });
  readonly batch_size = new Histogram({
    name: "vit_msn_batch_size",
    help: "Images computed together",
    labelNames: ["task"] as const,
    buckets: [1, 2, 4, 8, 16, 32, 64],
    registers: [this.registry],
  });
  readonly compute_seconds = new Histogram({
    name: "vit_msn_compute_seconds",
    help: "Time of a batch: resizing, normalising and the model",
    labelNames: ["task"] as const,
    buckets: SECONDS,
    registers: [this.registry],
  });

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  async text(): Promise<{ type: string; text: string }> {
    return { type: this.registry.contentType, text: await this.registry.metrics() };
  }
}
