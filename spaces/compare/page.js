// Keeps the view in the address bar, and implements the copy buttons. app.py adds this file to the page's head.

const PROMPTED_FIELDS = ["prompt", "guidance"]; // of text-to-image models; the prompt of others is null
const VIEW_FIELDS = ["benchmark", "left", "right", "task", "seed", "noise_seed", "samples", "steps", ...PROMPTED_FIELDS];

function showInUrl(...values) {
  if (!values[0]) return; // of an empty zoo: its only task would be opened again once there are models
  const url = new URL(window.location);
  VIEW_FIELDS.forEach((field, i) => url.searchParams.set(field, values[i] ?? ""));
  if (values[VIEW_FIELDS.indexOf("prompt")] === null) PROMPTED_FIELDS.forEach((field) => url.searchParams.delete(field));
  window.history.replaceState(window.history.state, "", url);
  // On the Hub the app is in a frame, and the outer page updates its own query from this message.
  if (window.parent !== window) {
    window.parent.postMessage({ queryString: url.searchParams.toString() }, "https://huggingface.co");
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copyable .copy");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    // Browsers allow clipboard access over https only: select the text for Ctrl+C instead.
    window.getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
});
