// Find every view on the page, read its data, and show it when it comes near.

for (const root of document.querySelectorAll("[data-view]")) {
  const begin = () => {
    const view = JSON.parse(document.getElementById(`${root.id}-data`).textContent);
    lab.views[root.dataset.view](root, view);
    root.dataset.ready = "";
  };

  // What is far below is drawn when the reader comes near; what is printed is drawn before.
  const near = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) now();
  }, { rootMargin: "600px" });
  const now = () => {
    near.disconnect();
    if (!("ready" in root.dataset)) begin();
  };

  near.observe(root);
  addEventListener("beforeprint", now);
}
