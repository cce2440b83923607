"use strict";
(() => {
  const $ = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  function theme() {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }
  $("#theme").addEventListener("click", theme);

  for (const svg of all("svg.heat")) {
    const rows = svg.dataset.values.split(";").map((row) => row.split(","));
    const said = svg.closest("figure").querySelector(".cell");
    svg.addEventListener("pointermove", (event) => {
      const box = svg.querySelector(".cells").getBoundingClientRect();
      const row = Math.floor(((event.clientY - box.top) / box.height) * rows.length);
      const column = Math.floor(((event.clientX - box.left) / box.width) * rows[0].length);
      const value = rows[row]?.[column];
      said.textContent = value === undefined
        ? ""
        : `${svg.dataset.up} ${row}, ${svg.dataset.across} ${column}: ${value || "no value"}`;
    });
    svg.addEventListener("pointerleave", () => { said.textContent = ""; });
  }

  // A table that is cut says so; where it can be scrolled to, its edge is shaded.
  function cut(box) {
    const rest = box.scrollWidth - box.clientWidth;
    box.classList.toggle("more-left", box.scrollLeft > 1);
    box.classList.toggle("more-right", box.scrollLeft < rest - 1);
    box.previousElementSibling.hidden = rest <= 1;
  }
  for (const box of all(".wide")) {
    box.addEventListener("scroll", () => cut(box), { passive: true });
    new ResizeObserver(() => cut(box)).observe(box);
    cut(box);
  }

  const views = JSON.parse($("#views").textContent);
  if (!views.length) {
    document.addEventListener("keydown", (event) => { if (event.key === "t") theme(); });
    return;
  }

  const stage = $("#stage"), scrub = $("#scrub"), play = $("#play"), handle = $("#handle");
  const panes = all(".pane canvas"), swipe = $("#swipe canvas"), area = $("#swipe");
  const video = document.createElement("video");
  const urls = new Map();
  let at = 0, view = views[0], frame = 0, split = 0.5, wanted = null;
  video.muted = true;
  video.playsInline = true;
  video.className = "unseen";
  video.tabIndex = -1;
  video.setAttribute("aria-hidden", "true");
  stage.after(video);

  function source(index) {
    if (!urls.has(index)) {
      const text = $(`#video-${index}`).textContent;
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      urls.set(index, URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })));
    }
    return urls.get(index);
  }

  function draw() {
    if (video.readyState < 2) return;
    const { width, height } = view, mode = stage.dataset.mode;
    const copy = (canvas, pane, part = width) => canvas.getContext("2d")
      .drawImage(video, pane * width, 0, part, height, 0, 0, part, height);
    panes.forEach((canvas, pane) => {
      if (mode === "side" || (mode === "difference" && pane === 2)) copy(canvas, pane);
    });
    if (mode === "swipe") {
      const part = Math.round(split * width);
      copy(swipe, 1);
      if (part > 0) copy(swipe, 0, part);
    }
  }

  function show(number) {
    frame = Math.max(0, Math.min(view.frames - 1, number));
    scrub.value = String(frame);
    scrub.setAttribute("aria-valuetext", `frame ${frame} of 0 to ${view.frames - 1}`);
    $("#frame").textContent = `${frame} / ${view.frames - 1}`;
    $("#said").textContent = view.said[frame] ? `This frame: ${view.said[frame]}` : "";
    for (const svg of all(".view:not([hidden]) svg.frames")) {
      const { start, stop, count } = svg.dataset;
      const shift = (frame / Math.max(1, count - 1)) * (stop - start);
      svg.querySelector(".cursor").setAttribute("transform", `translate(${shift} 0)`);
    }
  }

  function seek(number) {
    video.pause();
    show(number);
    wanted = (frame + 0.5) / view.fps;
    if (!video.seeking) video.currentTime = wanted;
  }

  function isThere() {
    return wanted !== null && Math.abs(video.currentTime - wanted) <= 1e-3;
  }

  // What is drawn and what is said of it change together, on the frame that the decoder names. A
  // busy browser may have no picture yet when it says that it has sought: that is drawn here too.
  function presented(seconds) {
    if (video.seeking || (video.paused && !isThere())) return;
    if (!video.paused) show(Math.floor(seconds * view.fps + 1e-3));
    draw();
  }

  function follow() {
    if (video.requestVideoFrameCallback) {
      video.requestVideoFrameCallback((now, { mediaTime }) => { presented(mediaTime); follow(); });
    } else {
      requestAnimationFrame(() => { presented(video.currentTime); follow(); });
    }
  }

  function toggle() {
    if (!video.paused) {
      video.pause();
      return;
    }
    const there = isThere() && !video.seeking;
    wanted = null;
    if (frame >= view.frames - 1) video.currentTime = 0;
    else if (!there) video.currentTime = (frame + 0.5) / view.fps; // it starts where it was opened
    video.play().catch((error) => { if (error.name !== "AbortError") throw error; });
  }

  function settled() {
    play.dataset.playing = String(!video.paused);
    play.setAttribute("aria-label", video.paused ? "Play" : "Pause");
    if (video.paused && !video.ended) seek(frame);
  }

  function open(index) {
    video.pause();
    at = (index + views.length) % views.length;
    view = views[at];
    $("#clip").value = String(at);
    scrub.max = String(view.frames - 1);
    $("#caption").textContent = view.caption;
    stage.style.setProperty("--ratio", String(view.width / view.height));
    for (const name of all(".preset-name")) name.textContent = view.preset;
    for (const canvas of [...panes, swipe]) {
      canvas.width = view.width;
      canvas.height = view.height;
    }
    for (const group of all(".view")) group.hidden = group.dataset.view !== String(at);
    wanted = null;
    video.src = source(view.video);
    show(frame);
  }

  function mode(name) {
    stage.dataset.mode = name;
    for (const button of all("button[data-mode]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === name));
    }
    draw();
  }

  function slide(share) {
    split = Math.max(0, Math.min(1, share));
    handle.style.left = `${100 * split}%`;
    handle.setAttribute("aria-valuenow", String(Math.round(100 * split)));
    draw();
  }

  function blink() {
    if (stage.dataset.mode !== "swipe") mode("swipe");
    slide(split < 0.5 ? 1 : 0);
  }

  video.addEventListener("loadeddata", () => {
    video.playbackRate = Number($("#speed").value);
    seek(frame);
  });
  video.addEventListener("seeked", () => {
    if (video.paused && wanted !== null && !isThere()) video.currentTime = wanted;
    else if (!video.requestVideoFrameCallback) draw(); // else `presented` draws what is there
  });
  video.addEventListener("canplay", () => { if (video.paused && !video.seeking && isThere()) draw(); });
  for (const name of ["play", "pause"]) video.addEventListener(name, settled);
  video.addEventListener("ended", () => { if (still.matches) settled(); else toggle(); });
  scrub.addEventListener("input", () => seek(Number(scrub.value)));
  play.addEventListener("click", toggle);
  $("#back").addEventListener("click", () => seek(frame - 1));
  $("#on").addEventListener("click", () => seek(frame + 1));
  $("#speed").addEventListener("change", (event) => { video.playbackRate = Number(event.target.value); });
  $("#clip").addEventListener("change", (event) => open(Number(event.target.value)));
  for (const button of all("button[data-mode]")) {
    button.addEventListener("click", () => mode(button.dataset.mode));
  }
  for (const button of all("button[data-open]")) {
    button.addEventListener("click", () => {
      open(Number(button.dataset.open));
      $("#watch").scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
    });
  }

  const drag = (event) => {
    const box = area.getBoundingClientRect();
    slide((event.clientX - box.left) / box.width);
  };
  area.addEventListener("pointerdown", (event) => { area.setPointerCapture(event.pointerId); drag(event); });
  area.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  handle.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: split - 0.02, ArrowRight: split + 0.02, Home: 0, End: 1 }[event.key];
    if (to === undefined) return;
    slide(to);
    event.preventDefault();
    event.stopPropagation();
  });

  for (const svg of all("svg.frames")) {
    const pick = (event) => {
      const box = svg.getBoundingClientRect(), { start, stop, count } = svg.dataset;
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      seek(Math.round(((x - start) / (stop - start)) * (count - 1)));
    };
    svg.addEventListener("pointerdown", pick);
    svg.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("select, input, pre, .wide") && event.key !== "t") return;
    const does = {
      " ": toggle,
      ArrowLeft: () => seek(frame - 1),
      ArrowRight: () => seek(frame + 1),
      1: () => mode("side"), 2: () => mode("swipe"), 3: () => mode("difference"),
      b: blink, n: () => open(at + 1), p: () => open(at - 1), t: theme,
    }[event.key];
    if (!does || (event.key === " " && event.target.closest("button, summary"))) return;
    event.preventDefault();
    does();
  });

  frame = view.worst;
  open(0);
  follow();
})();
