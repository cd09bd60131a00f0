"use strict";
(() => {
  const root = document.documentElement;
  const fault = (what) => { root.dataset.error = (root.dataset.error ? root.dataset.error + "; " : "") + what; };
  addEventListener("error", (event) => fault(event.message || "a picture could not be shown"), true);
  document.addEventListener("securitypolicyviolation", (event) => fault("refused by the page's own policy: " + event.violatedDirective));
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    });
  }

  const viewer = document.getElementById("viewer");
  if (viewer) look(viewer);
  const requested = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:"));
  root.dataset.requests = String(requested.length);
  root.dataset.ready = "yes";

  function look(viewer) {
    const get = (name) => viewer.querySelector(`[data-part="${name}"]`);
    const [scene, left, right, stage, frame, slide, said] = ["scene", "left", "right", "stage", "frame", "slide", "said"].map(get);
    const [before, after, edge, canvas] = ["before", "after", "edge", "canvas"].map(get);
    const state = { mode: "slider", amplify: 16, zoom: 0 };
    const pictures = [...document.querySelectorAll("img[data-scene]")];
    const picture = (route) => pictures.find((one) => one.dataset.scene === scene.value && one.dataset.route === route);
    viewer.closest("section").hidden = false;

    function options() {
      const here = pictures.filter((one) => one.dataset.scene === scene.value).map((one) => one.dataset.route);
      const fill = (select, wanted) => {
        select.replaceChildren(...here.map((route) => new Option(route, route, false, route === wanted)));
      };
      const kept = (select, fallback) => (here.includes(select.value) ? select.value : fallback);
      const first = kept(left, here.includes(left.dataset.first) ? left.dataset.first : here[0]);
      const second = kept(right, here.includes(right.dataset.first) ? right.dataset.first : here.find((one) => one !== first) || first);
      fill(left, first);
      fill(right, second);
    }

    function size() {
      const wide = before.naturalWidth || 1;
      const high = before.naturalHeight || 1;
      const room = stage.clientWidth;
      const fit = Math.min(room / wide, Math.min(760, Math.max(240, innerHeight * 0.62)) / high);
      const scale = state.zoom || fit;
      frame.style.width = wide * scale + "px";
      frame.style.height = high * scale + "px";
      frame.classList.toggle("pixelated", scale >= 1);
      stage.classList.toggle("zoomed", state.zoom > 0);
    }

    function show() {
      const [a, b] = [picture(left.value), picture(right.value)];
      if (!a || !b) return;
      before.src = a.src;
      after.src = b.src;
      before.alt = left.value;
      after.alt = right.value;
      get("leftname").textContent = state.mode === "difference" ? "" : "◀ " + left.value;
      get("rightname").textContent = state.mode === "difference" ? "" : right.value + " ▶";
      Promise.all([before.decode(), after.decode()]).then(draw, () => fault("a picture could not be shown"));
    }

    function draw() {
      const mode = state.mode;
      const at = Number(slide.value);
      canvas.hidden = mode !== "difference";
      before.hidden = mode === "difference";
      after.hidden = mode === "difference";
      edge.hidden = mode !== "slider";
      slide.hidden = mode !== "slider";
      after.style.clipPath = mode === "slider" ? `inset(0 0 0 ${at}%)` : "none";
      after.style.visibility = mode === "flip" && !state.flipped ? "hidden" : "visible";
      edge.style.left = at + "%";
      for (const button of viewer.querySelectorAll("button[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
      for (const button of viewer.querySelectorAll("button[data-amplify]")) button.setAttribute("aria-pressed", String(Number(button.dataset.amplify) === state.amplify));
      for (const button of viewer.querySelectorAll("button[data-zoom]")) button.setAttribute("aria-pressed", String(Number(button.dataset.zoom) === state.zoom));
      get("amplification").hidden = mode !== "difference";
      said.textContent = mode === "difference" ? differ() : mode === "flip"
        ? `Showing ${state.flipped ? right.value : left.value}. Click the picture, or press the space bar, to flip.` : "";
      size();
    }

    function pixels(image) {
      const surface = document.createElement("canvas");
      surface.width = image.naturalWidth;
      surface.height = image.naturalHeight;
      const pen = surface.getContext("2d", { willReadFrequently: true });
      pen.drawImage(image, 0, 0);
      return pen.getImageData(0, 0, surface.width, surface.height);
    }

    function differ() {
      const [a, b] = [pixels(before), pixels(after)];
      if (a.width !== b.width || a.height !== b.height) return "The two pictures have different sizes.";
      let most = 0;
      let count = 0;
      for (let at = 0; at < a.data.length; at += 4) {
        let here = 0;
        for (let channel = at; channel < at + 3; channel += 1) {
          const apart = Math.abs(a.data[channel] - b.data[channel]);
          here = Math.max(here, apart);
          a.data[channel] = Math.min(255, apart * state.amplify);
        }
        most = Math.max(most, here);
        count += here > 0;
      }
      canvas.width = a.width;
      canvas.height = a.height;
      canvas.getContext("2d").putImageData(a, 0, 0);
      const share = (100 * count) / (a.width * a.height);
      return most === 0 ? `No pixel differs between ${left.value} and ${right.value}.`
        : `|${left.value} − ${right.value}| × ${state.amplify}: the largest difference is ${most} of 255; ${share < 0.1 ? "under 0.1" : share.toFixed(1)} % of the pixels differ.`;
    }

    function zoom(to, x = 0.5, y = 0.5) {
      state.zoom = to;
      draw();
      stage.scrollTo(frame.offsetWidth * x - stage.clientWidth / 2, frame.offsetHeight * y - stage.clientHeight / 2);
    }
    const steps = [0, 1, 2, 4, 8];
    const bigger = () => {
      const now = frame.offsetWidth / (before.naturalWidth || 1);
      return steps.find((step) => step > (state.zoom || now) + 0.01) || 0;
    };

    for (const select of [left, right]) select.addEventListener("change", show);
    scene.addEventListener("change", () => { options(); show(); });
    slide.addEventListener("input", draw);
    addEventListener("resize", size);
    viewer.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.mode) { state.mode = button.dataset.mode; state.flipped = false; show(); }
      if (button.dataset.amplify) { state.amplify = Number(button.dataset.amplify); draw(); }
      if (button.dataset.zoom) zoom(Number(button.dataset.zoom));
      if (button.dataset.swap !== undefined) { [left.value, right.value] = [right.value, left.value]; show(); }
    });

    let held = null;
    stage.addEventListener("pointerdown", (event) => {
      const area = stage.getBoundingClientRect();
      if (event.button || event.clientX > area.left + stage.clientWidth || event.clientY > area.top + stage.clientHeight) return;
      held = { x: event.clientX, y: event.clientY, left: stage.scrollLeft, top: stage.scrollTop, moved: false };
      if (event.pointerType === "mouse") event.preventDefault();
    });
    addEventListener("pointermove", (event) => {
      if (!held) return;
      if (Math.abs(event.clientX - held.x) + Math.abs(event.clientY - held.y) > 4) held.moved = true;
      if (!held.moved) return;
      if (state.mode === "slider" && !state.zoom) {
        const area = frame.getBoundingClientRect();
        slide.value = String((100 * (event.clientX - area.left)) / area.width);
        draw();
      } else if (event.pointerType === "mouse") {
        stage.scrollTo(held.left - event.clientX + held.x, held.top - event.clientY + held.y);
      }
    });
    addEventListener("pointercancel", () => { held = null; });
    addEventListener("pointerup", (event) => {
      if (held && !held.moved) {
        const area = frame.getBoundingClientRect();
        if (state.mode === "flip") { state.flipped = !state.flipped; draw(); }
        else zoom(bigger(), (event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height);
      }
      held = null;
    });
    stage.addEventListener("keydown", (event) => {
      const step = { "+": 1, "=": 1, "-": -1 }[event.key];
      const now = steps.indexOf(state.zoom);
      if (step && !event.ctrlKey && !event.metaKey) zoom(steps[Math.max(0, Math.min(steps.length - 1, now + step))]);
      else if (event.key === "0" && !event.ctrlKey && !event.metaKey) zoom(0);
      else if (event.key === " " && state.mode === "flip") { state.flipped = !state.flipped; draw(); }
      else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && state.mode === "slider" && !state.zoom) {
        slide.value = String(Number(slide.value) + (event.key === "ArrowLeft" ? -2 : 2));
        draw();
      } else return;
      event.preventDefault();
    });

    for (const one of pictures) {
      one.closest("button").addEventListener("click", () => {
        scene.value = one.dataset.scene;
        options();
        right.value = one.dataset.route;
        if (left.value === right.value) left.value = left.dataset.first === right.value && picture("base") ? "base" : left.dataset.first;
        show();
        viewer.scrollIntoView({ block: "start" });
        stage.focus({ preventScroll: true });
      });
    }
    options();
    show();
  }
})();
