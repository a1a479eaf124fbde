// The view in the address bar, so that it can be shared; and the copy buttons. Loaded by app.py into the page's head.

const VIEW_FIELDS = ["benchmark", "left", "right", "task", "seed", "noise_seed", "samples", "steps"];

function showInUrl(...values) {
  const url = new URL(window.location);
  VIEW_FIELDS.forEach((field, i) => url.searchParams.set(field, values[i]));
  window.history.replaceState(window.history.state, "", url);
  // On the Hub the app is framed: its page takes over the query that the frame tells it.
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
    // Without https the browser keeps the clipboard to itself: select the text, and leave Ctrl+C to the reader.
    window.getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
});
