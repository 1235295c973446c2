"use strict";
(() => {
  const make = (name, text) => Object.assign(document.createElement(name), { textContent: text });

  // Values of charts, by pointer, touch and arrow keys.
  const tip = Object.assign(make("div", ""), { id: "tip", hidden: true });
  tip.setAttribute("role", "status");
  document.body.append(tip);

  function show(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - box.width - 4)) + "px";
    tip.style.top = (y + 16 + box.height > innerHeight ? Math.max(4, y - box.height - 8) : y + 16) + "px";
  }

  function hide(svg) {
    tip.hidden = true;
    svg.querySelectorAll(".on").forEach((point) => point.classList.remove("on"));
  }

  function distance(box, x, y) {
    return Math.hypot(Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
  }

  function points(svg) {
    const all = [...svg.querySelectorAll("[data-tip]")];
    let at = -1;
    const choose = (i) => {
      hide(svg);
      at = i;
      all[i].classList.add("on");
      const box = all[i].getBoundingClientRect();
      show(all[i].dataset.tip, box.left + box.width / 2, box.top + box.height / 2);
    };
    svg.addEventListener("pointermove", (event) => {
      let best = -1, least = 24;
      all.forEach((point, i) => {
        const far = distance(point.getBoundingClientRect(), event.clientX, event.clientY);
        if (far < least) [best, least] = [i, far];
      });
      if (best < 0) hide(svg);
      else choose(best);
    });
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      choose(Math.max(0, Math.min(all.length - 1, at + by)));
    });
  }

  function cells(svg) {
    const { names, axes, values } = JSON.parse(svg.dataset.grid);
    const image = svg.querySelector("image");
    if (!image || !values.length) return;
    let row = 0, column = -1;
    const choose = (r, c) => {
      [row, column] = [r, c];
      const box = image.getBoundingClientRect();
      const named = (axis, i) => (axis ? axis + " " : "") + (names[i] ?? i);
      const text = named(axes[0], r) + ", " + named(axes[1], c) + ": " + values[r][c];
      show(text, box.left + ((c + 0.5) * box.width) / values[0].length, box.top + ((r + 0.5) * box.height) / values.length);
    };
    svg.addEventListener("pointermove", (event) => {
      const box = image.getBoundingClientRect();
      const r = Math.floor(((event.clientY - box.top) / box.height) * values.length);
      const c = Math.floor(((event.clientX - box.left) / box.width) * values[0].length);
      if (r >= 0 && r < values.length && c >= 0 && c < values[0].length) choose(r, c);
      else hide(svg);
    });
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!by) return;
      event.preventDefault();
      const within = (value, count) => Math.max(0, Math.min(count - 1, value));
      choose(within(row + by[0], values.length), within(column + by[1], values[0].length));
    });
  }

  document.querySelectorAll("figure svg").forEach((svg) => {
    if (svg.dataset.grid) cells(svg);
    else if (svg.querySelector("[data-tip]")) points(svg);
    else return;
    svg.setAttribute("tabindex", "0");
    ["pointerleave", "blur"].forEach((name) => svg.addEventListener(name, () => hide(svg)));
    svg.addEventListener("keydown", (event) => event.key === "Escape" && hide(svg));
  });

  // Columns that sort their table.
  function number(text) {
    const found = text.replace(/(\d),(?=\d{3})/g, "$1").match(/^\s*[-+−]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? Number(found[0].replace("−", "-")) : NaN;
  }

  function compare(a, b) {
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    return isNaN(x) ? a.localeCompare(b) : x - y;
  }

  document.querySelectorAll("table").forEach((table) => {
    const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
    if (!body || body.rows.length < 2) return;
    heads.forEach((head, column) => {
      const button = Object.assign(make("button", head.textContent), { type: "button", title: "Sort" });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const now = head.ariaSort || (head.classList.contains("num") ? "ascending" : "descending");
        const order = now === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const text = (row) => row.cells[column].textContent.trim();
        const missing = (row) => ["", "–", "none"].includes(text(row));
        const rows = [...body.rows].sort((a, b) => missing(a) - missing(b)
          || compare(text(a), text(b)) * (order === "ascending" ? 1 : -1));
        body.append(...rows);
      });
    });
  });

  // Images, enlarged.
  const images = [...document.querySelectorAll(".strips img, .film img")];
  if (images.length) {
    const dialog = make("dialog", ""), picture = document.createElement("img"), caption = make("p", "");
    const nav = make("nav", ""), back = make("button", "Previous"), next = make("button", "Next");
    const close = make("button", "Close");
    dialog.setAttribute("aria-label", "Enlarged image");
    [back, next, close].forEach((button) => (button.type = "button"));
    nav.append(back, next, close);
    dialog.append(picture, caption, nav);
    document.body.append(dialog);
    let at = 0;
    const open = (i) => {
      at = (i + images.length) % images.length;
      picture.src = images[at].src;
      picture.alt = images[at].alt;
      caption.textContent = images[at].alt;
      if (!dialog.open) dialog.showModal();
    };
    images.forEach((image, i) => {
      image.classList.add("zoom");
      image.tabIndex = 0;
      image.setAttribute("role", "button");
      image.addEventListener("click", () => open(i));
      image.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        open(i);
      });
    });
    back.addEventListener("click", () => open(at - 1));
    next.addEventListener("click", () => open(at + 1));
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) open(at + by);
    });
  }

  // An inversion, step by step.
  document.querySelectorAll(".film").forEach((film) => {
    const frames = [...film.querySelectorAll("img")], captions = [...film.querySelectorAll("figcaption")];
    if (frames.length < 2) return;
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: frames.length - 1, value: frames.length - 1 });
    slider.setAttribute("aria-label", "Step of the inversion");
    const choose = () => {
      [...frames, ...captions].forEach((part) => part.classList.remove("on"));
      frames[slider.value].classList.add("on");
      captions[slider.value].classList.add("on");
      slider.setAttribute("aria-valuetext", captions[slider.value].textContent);
    };
    slider.addEventListener("input", choose);
    film.classList.add("ready");
    film.append(slider);
    choose();
  });

  // The page of a running command; it waits while an image is enlarged.
  const running = document.querySelector("[data-refresh]");
  if (running) {
    setInterval(() => document.querySelector("dialog[open]") || location.reload(), 1000 * running.dataset.refresh);
  }

  // All tables at once.
  const folds = [...document.querySelectorAll("details.fold")];
  if (folds.length > 1) {
    const button = Object.assign(make("button", "Open all"), { type: "button" });
    button.addEventListener("click", () => {
      const opened = folds.every((fold) => fold.open);
      folds.forEach((fold) => (fold.open = !opened));
      button.textContent = opened ? "Open all" : "Close all";
    });
    const tools = Object.assign(make("p", ""), { className: "tools" });
    tools.append(button);
    folds[0].before(tools);
  }
})();
