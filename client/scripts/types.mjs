// Writes src/events.ts from schema/events.schema.json, which Python prints; with `--check` it only says whether that is
// up to date. What it writes depends on the schema alone: no type of an event is made up here.
import { readFile, writeFile } from "node:fs/promises";
import { compile } from "json-schema-to-typescript";

const SCHEMA = new URL("../schema/events.schema.json", import.meta.url);
const TARGET = new URL("../src/events.ts", import.meta.url);
const BANNER = "// Generated from src/agent_sse/event_models.py by `npm run types`; do not edit.";
const EVENT_TYPE = "\n/** The name of an event. */\nexport type EventType = keyof EventData;\n";

const nameIn = (reference) => reference.split("/").at(-1);

/** Return the name of what an event carries: its `data`, or what it has at the top, which is a type of its own too. */
function carriedBy(event, definitions) {
  const { type, data } = definitions[event].properties;
  const name = data ? nameIn(data.$ref) : event.replace(/Event$/, "");
  if (!definitions[name]) throw new Error(`schema/events.schema.json has no ${name}, which ${type.const} would carry`);
  return [type.const, name];
}

/** Say `unknown` where any JSON may stand; the generator would take a schema that has only a description for an object. */
function nameUnknown(definition) {
  for (const property of Object.values(definition.properties ?? {})) {
    if (Object.keys(property).every((key) => key === "description")) property.tsType = "unknown";
  }
}

/** Return the schema of `EventData`: an object that has under each type's name what such an event carries. */
function mapOf({ oneOf, $defs }) {
  Object.values($defs).forEach(nameUnknown);
  const carried = oneOf.map(({ $ref }) => carriedBy(nameIn($ref), $defs));
  return {
    description: "What each type of event carries: its `data`, or the fields at the top of `heartbeat` and `error`.",
    type: "object",
    properties: Object.fromEntries(carried.map(([type, name]) => [type, { $ref: `#/$defs/${name}` }])),
    required: carried.map(([type]) => type),
    $defs,
  };
}

const schema = mapOf(JSON.parse(await readFile(SCHEMA, "utf8")));
const types = await compile(schema, "EventData", {
  additionalProperties: false, // where the schema does not say it; an open object says `true`
  bannerComment: BANNER,
  style: { printWidth: 120 },
});
const wanted = types + EVENT_TYPE;

if (!process.argv.includes("--check")) {
  await writeFile(TARGET, wanted);
} else if ((await readFile(TARGET, "utf8").catch(() => "")) !== wanted) {
  console.error("client/src/events.ts is not what schema/events.schema.json says: run `npm run types` in client/");
  process.exitCode = 1;
}
