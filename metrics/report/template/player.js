"use strict";
(() => {
  const $ = (selector) => document.querySelector(selector);
  const views = JSON.parse($("#views").textContent);
  const stage = $("#stage"), scrub = $("#scrub"), play = $("#play"), handle = $("#handle");
  const panes = [...document.querySelectorAll(".pane canvas")], swipe = $("#swipe canvas");
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  const urls = new Map();
  let view = null, frame = 0, split = 0.5, wanted = null;

  function source(index) {
    if (!urls.has(index)) {
      const text = $(`#video-${index}`).textContent;
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      urls.set(index, URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })));
    }
    return urls.get(index);
  }

  function draw() {
    if (!view || video.readyState < 2) return;
    const { width, height } = view;
    const mode = stage.dataset.mode;
    panes.forEach((canvas, pane) => {
      if (mode === "side" || (mode === "difference" && pane === 2)) {
        size(canvas).drawImage(video, pane * width, 0, width, height, 0, 0, width, height);
      }
    });
    if (mode === "swipe") {
      const context = size(swipe), at = Math.round(split * width);
      context.drawImage(video, width, 0, width, height, 0, 0, width, height);
      if (at > 0) context.drawImage(video, 0, 0, at, height, 0, 0, at, height);
    }
  }

  function size(canvas) {
    if (canvas.width !== view.width || canvas.height !== view.height) {
      canvas.width = view.width;
      canvas.height = view.height;
    }
    return canvas.getContext("2d");
  }

  function show(at) {
    frame = Math.max(0, Math.min(view.frames - 1, at));
    scrub.value = String(frame);
    $("#frame").textContent = `${frame + 1} / ${view.frames}`;
    for (const svg of document.querySelectorAll(".view:not([hidden]) svg[data-count]")) {
      const { start, stop, count } = svg.dataset;
      if (Number(count) !== view.frames) continue;
      const shift = (frame / Math.max(1, count - 1)) * (stop - start);
      svg.querySelector(".cursor").setAttribute("transform", `translate(${shift} 0)`);
    }
  }

  function seek(at) {
    show(at);
    wanted = (frame + 0.5) / view.fps;
    if (!video.seeking) video.currentTime = wanted;
  }

  function playing(on) {
    play.textContent = on ? "❚❚" : "▶";
    if (on) {
      if (frame >= view.frames - 1) video.currentTime = 0;
      video.play();
    } else {
      video.pause();
    }
  }

  function follow() {
    if (!video.paused) {
      show(Math.floor(video.currentTime * view.fps + 1e-3));
      draw();
    }
    requestAnimationFrame(follow);
  }

  function open(index) {
    playing(false);
    view = views[index];
    frame = 0;
    scrub.max = String(view.frames - 1);
    $("#sparse-name").textContent = $("#swipe-name").textContent = view.preset;
    $("#caption").textContent = view.caption;
    for (const section of document.querySelectorAll(".view")) {
      section.hidden = section.dataset.view !== String(index);
    }
    video.src = source(view.video);
    show(0);
  }

  function mode(name) {
    stage.dataset.mode = name;
    for (const button of document.querySelectorAll("[data-mode]:is(button)")) {
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

  function theme() {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }

  video.addEventListener("loadeddata", () => seek(0));
  video.addEventListener("seeked", () => {
    if (wanted !== null && Math.abs(video.currentTime - wanted) > 1e-3 && video.paused) {
      video.currentTime = wanted;
    }
    draw();
  });
  video.addEventListener("ended", () => playing(true));
  scrub.addEventListener("input", () => { playing(false); seek(Number(scrub.value)); });
  play.addEventListener("click", () => playing(video.paused));
  $("#clip").addEventListener("change", (event) => open(Number(event.target.value)));
  $("#theme").addEventListener("click", theme);
  for (const button of document.querySelectorAll("button[data-mode]")) {
    button.addEventListener("click", () => mode(button.dataset.mode));
  }
  const area = $("#swipe");
  const drag = (event) => {
    const box = area.getBoundingClientRect();
    slide((event.clientX - box.left) / box.width);
  };
  area.addEventListener("pointerdown", (event) => { area.setPointerCapture(event.pointerId); drag(event); });
  area.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (step) { slide(split + step); event.preventDefault(); event.stopPropagation(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const does = {
      " ": () => playing(video.paused),
      ArrowLeft: () => { playing(false); seek(frame - 1); },
      ArrowRight: () => { playing(false); seek(frame + 1); },
      1: () => mode("side"), 2: () => mode("swipe"), 3: () => mode("difference"), t: theme,
    }[event.key];
    if (!does || (event.key === " " && event.target.closest("button, summary"))) return;
    event.preventDefault();
    does();
  });
  if (views.length) {
    open(0);
    requestAnimationFrame(follow);
  }
})();
