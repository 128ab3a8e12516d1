// Answers by llama.cpp through node-llama-cpp, as benches/processors.py asks for them.
//
// Reads its settings as JSON from the first argument; prints one JSON line per repetition: the seconds to the first
// token, and from there to the last. Loading and warming up are not measured. Each token passes through JavaScript.

import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const settings = JSON.parse(process.argv[2]);
const require = createRequire(pathToFileURL(settings.modules + "/"));
const {getLlama} = await import(pathToFileURL(require.resolve("node-llama-cpp")));

const llama = await getLlama({gpu: false, build: "never", progressLogs: false, maxThreads: settings.threads});
const model = await llama.loadModel({modelPath: settings.model});
const context = await model.createContext({contextSize: 2048, batchSize: 2048, threads: settings.threads});
const sequence = context.getSequence();
const seconds = () => Number(process.hrtime.bigint()) / 1e9;

for (const test of settings.cases) {
    const tokens = model.tokenize(test.prompts[0]);
    const opened = seconds();
    for (let i = 0; i <= test.repeats; i++) {
        await sequence.clearHistory();
        const began = seconds();
        let first = null, last = null, made = 0;
        // Tokens that would end an answer are returned like others, and generation continues.
        for await (const _ of sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
            last = seconds();
            first ??= last;
            if (++made === test.new)
                break;
        }
        console.log("TIME " + JSON.stringify({
            case: test.name, prompt_tokens: tokens.length, prompt_seconds: first - began,
            new_tokens: made, decode_seconds: last - first,
        }));
        if (seconds() - opened > settings.patience)
            break;
    }
}
process.exit(0);
