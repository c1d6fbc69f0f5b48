// The chat page in a real browser: type, stream, stop, regenerate, reload, markup as text, keyboard, phone width.
//
//   node tests/browser/chat_page.mjs URL SCREENSHOT_FOLDER [CHROMIUM]
//
// Needs playwright-core (npm) and Chromium. `tests/browser/run.py` starts the server and this script. Exit code 1 names
// the first expectation that does not hold.
import { chromium } from "playwright-core";

const [url, folder, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);

function expect(holds, what) {
  if (!holds) throw new Error(`expected: ${what}`);
  console.log(`ok  ${what}`);
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 1100, height: 800 } });
const page = await context.newPage();
const problems = [];
const hosts = new Set();
page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
page.on("pageerror", (error) => problems.push(error.message));
page.on("dialog", (dialog) => {
  problems.push(`a dialog: ${dialog.message()}`);
  dialog.dismiss();
});
page.on("request", (request) => hosts.add(new URL(request.url()).host));

const turns = () => page.locator(".turn").allInnerTexts();
const finished = () => page.locator("#send:visible").waitFor();

async function ask(text) {
  await page.keyboard.type(text); // the field has the focus: no mouse is needed
  await page.keyboard.press("Enter");
}

await page.goto(url);
await page.waitForFunction(() => document.title !== "nanochat");
expect((await page.locator("#facts").innerText()).includes("parameters"), "the page names the model's size");
expect(await page.locator("#facts a").count() === 1, "the page links to the report");
await page.screenshot({ path: `${folder}/empty.png` });

await page.locator("#open-settings").focus();
await page.keyboard.press("Enter");
await page.locator("#length").fill("120");
await page.locator("#temperature").fill("0");
await page.locator("#question").focus();
await ask("Spell the word: garden");
await page.waitForFunction(() => (document.querySelector(".assistant span")?.textContent.length ?? 0) > 0);
await finished();
const first = await turns();
expect(first.length === 2 && first[0] === "Spell the word: garden", "the question and an answer are shown");

await page.locator(".again").click();
await finished();
expect(JSON.stringify(await turns()) === JSON.stringify(first), "at temperature 0 the answer is regenerated as it was");
await page.screenshot({ path: `${folder}/answered.png` });

const markup = "<img src=x onerror=alert(1)><script>alert(2)</script>";
await ask(markup);
await finished();
expect((await turns())[2] === markup, "markup appears as text");
expect(await page.locator(".turn img, .turn script").count() === 0, "markup becomes no element");

await page.reload();
await page.waitForFunction(() => document.querySelectorAll(".turn").length >= 4);
expect((await turns())[0] === first[0], "the chat survives loading the page again");
expect(await page.locator("#length").inputValue() === "120", "the settings survive too");

await page.locator("#new-chat").click();
expect((await turns()).length === 0, "a new chat is empty");
await page.route("**/v1/chat/completions", async (route) => {
  await new Promise((resolve) => setTimeout(resolve, 1500)); // time to press Escape
  await route.continue().catch(() => {});
});
await ask("and now stop");
await page.locator("#stop:visible").waitFor();
await page.keyboard.press("Escape");
await finished();
expect((await turns()).at(-1).includes("Stopped"), "Escape stops the answer");
await page.unroute("**/v1/chat/completions");

await page.setViewportSize({ width: 375, height: 720 });
await ask("What is a queue?");
await finished();
const width = await page.evaluate(() => document.documentElement.scrollWidth);
expect(width <= 375, "nothing is wider than a phone");
expect(await page.locator("#question").isVisible() && await page.locator("#send").isVisible(), "the phone shows the field");
await page.screenshot({ path: `${folder}/phone.png` });

expect(hosts.size === 1, "the page asks no other host");
expect(problems.length === 0, `the console is empty ${problems.join("; ")}`);
await browser.close();
