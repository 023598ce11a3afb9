// Sort and filter the list of utterances. All texts are in the page already: nothing here makes HTML.
"use strict";
(() => {
  const list = document.getElementById("list");
  const form = document.getElementById("filter");
  if (!list) return;
  const control = (name) => document.getElementById("f-" + name);
  const chosen = (name) => (control(name) ? control(name).value : "");
  const items = Array.from(list.children, (element, place) => {
    const d = element.dataset;
    return {
      element, place,
      id: element.querySelector("h3").textContent,
      text: "",  // read when it is first searched
      set: d.set, speaker: d.speaker, duration: Number(d.duration), words: Number(d.words),
      errors: d.errors.split(",").map((x) => (x === "-" ? 0 : Number(x))),
      kinds: d.kinds.split(","),
      confusions: new Set(d.confusions.split(" ")),
    };
  });
  const PAGE = 100;  // utterances that are shown at first: thousands make browsers slow
  let confusion = null;  // the pressed button
  let most = PAGE;

  function errors(item) {
    const method = chosen("method");
    return method === "" ? item.errors.reduce((a, b) => a + b, 0) : item.errors[Number(method)];
  }

  function has(item, text) {
    if (text === "") return true;
    if (item.text === "") item.text = item.element.textContent.toLowerCase();
    return item.text.includes(text);
  }

  function fits(item, wanted) {
    const kinds = wanted.method === "" ? item.kinds.join("") : item.kinds[Number(wanted.method)];
    return (wanted.set === "" || item.set === wanted.set)
      && (wanted.speaker === "" || item.speaker === wanted.speaker)
      && kinds !== "" && (wanted.kind === "" || kinds.includes(wanted.kind))
      && (confusion === null || item.confusions.has(confusion.dataset.confusion))
      && has(item, wanted.text);
  }

  function filter() {
    most = PAGE;
    show();
  }

  function show() {
    const wanted = { text: chosen("text").trim().toLowerCase() };
    for (const name of ["set", "method", "kind", "speaker"]) wanted[name] = chosen(name);
    let count = 0;
    for (const item of items) {
      const fit = fits(item, wanted);
      count += fit;
      item.element.hidden = !fit || count > most;
    }
    control("count").textContent = count + " of " + items.length + " wrong utterances";
    control("clear").hidden = confusion === null;
    control("more").hidden = count <= most;
  }

  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const orders = {
    errors: (a, b) => errors(b) - errors(a),
    wer: (a, b) => errors(b) / Math.max(b.words, 1) - errors(a) / Math.max(a.words, 1),
    duration: (a, b) => b.duration - a.duration,
    speaker: (a, b) => compare(a.speaker, b.speaker),
    id: (a, b) => compare(a.id, b.id),
  };

  function sort() {
    const order = orders[chosen("sort")];
    items.sort((a, b) => order(a, b) || a.place - b.place);
    for (const item of items) item.element.hidden = true;
    list.replaceChildren(...items.map((item) => item.element));  // append takes 10 ms for each that is there
    filter();
  }

  function press(button) {
    if (confusion !== null) confusion.setAttribute("aria-pressed", "false");
    confusion = button;
    if (button !== null) {
      button.setAttribute("aria-pressed", "true");
      form.reset();
    }
    filter();
    if (button !== null) document.getElementById("utterances").scrollIntoView();
  }

  for (const button of document.querySelectorAll("button[data-confusion]")) {
    button.hidden = false;
    button.addEventListener("click", () => press(button === confusion ? null : button));
  }
  control("clear").addEventListener("click", () => press(null));
  control("sort").addEventListener("change", sort);
  control("method").addEventListener("change", sort);
  control("more").addEventListener("click", () => { most += PAGE; show(); });
  for (const name of ["set", "kind", "speaker"]) {
    if (control(name)) control(name).addEventListener("change", filter);
  }
  let waiting = 0;
  control("text").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 100);
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  form.reset();  // a reloaded page keeps what was chosen
  form.hidden = false;
  filter();
})();
