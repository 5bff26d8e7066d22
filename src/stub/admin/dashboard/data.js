// What the stub says, asked for again and again, as long as somebody looks.

const EVERY = 1500;
const PATIENCE = 5000;
const LONGEST_PAUSE = 10000;

/** Asks for everything, of one cluster or of all, and tells `listener` what came or what went wrong. */
export class Feed {
  #listener;
  #cluster = null;
  #timer = null;
  #round = 0;
  #failures = 0;
  #rates = new Rates();

  constructor(listener) {
    this.#listener = listener;
    document.addEventListener("visibilitychange", () => this.#restart());
    window.addEventListener("online", () => this.#restart());
  }

  /** From now on about this cluster; `null` for all. */
  about(cluster) {
    this.#cluster = cluster;
    this.#restart();
  }

  #restart() {
    clearTimeout(this.#timer);
    this.#round += 1;
    if (!document.hidden) this.#ask(this.#round);
  }

  async #ask(round) {
    const query = this.#cluster === null ? "" : `?cluster=${encodeURIComponent(this.#cluster)}`;
    let pause = EVERY;
    try {
      const parts = ["status", "requests", "incidents", "series"];
      const [status, requests, incidents, series] = await Promise.all(parts.map((part) => get(`/api/v1/${part}${query}`)));
      if (round !== this.#round) return;
      this.#failures = 0;
      this.#rates.add(status);
      this.#listener({ status, requests, incidents, series, error: null });
    } catch (error) {
      if (round !== this.#round) return;
      this.#failures += 1;
      pause = Math.min(EVERY * 2 ** this.#failures, LONGEST_PAUSE);
      this.#listener({ error: String(error.message ?? error) });
    }
    this.#timer = setTimeout(() => this.#ask(round), pause);
  }
}

async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

// The stub counts from the moment an agent connected; what happens per second is the difference to the last answer.
class Rates {
  #before = new Map();
  #at = 0;

  add(status) {
    const now = performance.now();
    const seconds = (now - this.#at) / 1000;
    const seen = new Map();
    for (const cluster of status.clusters) {
      for (const agent of cluster.agents) {
        agent.cluster = cluster.id;
        agent.id = `${cluster.id}/${agent.name}/${agent.carrier}/${agent.connectedSince}`;
        const before = this.#before.get(agent.id) ?? agent;
        const rate = (field) => Math.max(0, (agent[field] - before[field]) / seconds);
        agent.requestRate = rate("requests");
        agent.byteRate = rate("bytesToClients") + rate("bytesFromClients");
        seen.set(agent.id, agent);
      }
    }
    this.#before = seen;
    this.#at = now;
  }
}
