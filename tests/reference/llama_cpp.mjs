// What llama.cpp computes for GGUF files, through node-llama-cpp, for check_llama_cpp.py.
//
// Reads its settings as JSON from a file: {"modules": folder of node_modules, "cases": [{"model", "lora" (or null), "texts",
// "rows" (token ids), "prompts" (token ids), "new"}]}. Prints one line of JSON per case: the token ids of texts, the logits after the last token of
// rows, and the tokens that follow prompts, chosen greedily.

import {createRequire} from "node:module";
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const settings = JSON.parse(readFileSync(process.argv[2], "utf8"));
const require = createRequire(pathToFileURL(settings.modules + "/"));
const {getLlama} = await import(pathToFileURL(require.resolve("node-llama-cpp")));

const llama = await getLlama({gpu: false, build: "never", progressLogs: false, maxThreads: 1, logLevel: "error"});
for (const test of settings.cases) {
    try {
        console.log("CASE " + JSON.stringify(await run(test)));
    } catch (error) {
        console.log("CASE " + JSON.stringify({error: String(error)}));
    }
}
process.exit(0);

async function run(test) {
    const model = await llama.loadModel({modelPath: test.model});
    const context = await model.createContext({
        contextSize: test.context, batchSize: test.context, threads: 1, flashAttention: false,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
        ...(test.lora == null ? {} : {lora: {adapters: [{filePath: test.lora, scale: 1}]}}),
    });
    const ids = test.texts.map((text) => Array.from(model.tokenize(text, true)));
    const sequence = context.getSequence();
    const logits = [];
    for (const row of test.rows) {
        await sequence.clearHistory();
        const input = row.map((id, i) => i === row.length - 1 ? [id, {generateNext: {logits: true}}] : id);
        const out = await sequence.controlledEvaluate(input);
        const found = out[row.length - 1].next.logits;
        logits.push(Array.from({length: found.size}, (_, id) => found.get(id)));
    }
    const greedy = [];
    for (const prompt of test.prompts) {
        await sequence.clearHistory();
        const made = [];
        // Tokens that would end an answer are returned like others, and generation continues.
        for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
            made.push(token);
            if (made.length >= test.new)
                break;
        }
        greedy.push(made);
    }
    const bos = model.tokens.shouldPrependBosToken;
    await context.dispose();
    await model.dispose();
    return {ids, logits, greedy, bos};
}
