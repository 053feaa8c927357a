"use strict";
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const byId = (id) => document.getElementById(id);
  const radios = [...document.querySelectorAll('input[name="layer"]')];
  const state = { image: 0, layer: "prediction" };
  if (!data.images.length) return;

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // The label alone, then a view for each net
  const views = ["truth", ...data.nets].map((name) => {
    const photo = element("img", { class: "photo" });
    const layer = element("img", { class: "layer" });
    const stage = element("div", { class: "stage" }, photo, layer);
    const caption = element("figcaption", {});
    byId("views").append(element("figure", { class: "view" }, stage, caption));
    return { name, photo, layer, stage, caption };
  });

  const thumbs = data.images.map((image, index) => {
    const picture = element("img", { src: image.photo, alt: "" });
    const button = element("button", { type: "button", "aria-label": `Image ${index + 1}: ${image.name}` }, picture);
    button.addEventListener("click", () => show(index, state.layer));
    byId("thumbs").append(button);
    return button;
  });

  // The class under the pointer, by its colour in the pictures: 21 colours of a legend are hard to tell apart
  const pixels = new Map();
  async function pixelsOf(source) {
    if (!pixels.has(source)) {
      const picture = new Image();
      picture.src = source;
      await picture.decode();
      const canvas = element("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(picture, 0, 0);
      pixels.set(source, context.getImageData(0, 0, canvas.width, canvas.height));
    }
    return pixels.get(source);
  }

  function colourAt(picture, x, y) {
    const column = Math.min(picture.width - 1, Math.floor(x * picture.width));
    const start = 4 * (Math.min(picture.height - 1, Math.floor(y * picture.height)) * picture.width + column);
    return [...picture.data.slice(start, start + 4)];
  }

  function classAt(picture, x, y) {
    const [red, green, blue, alpha] = colourAt(picture, x, y);
    if (!alpha) return data.classes[0];
    const index = data.colours.findIndex((one) => one[0] === red && one[1] === green && one[2] === blue);
    return index === data.classes.length ? "void" : data.classes[index];
  }

  async function point(view, number, event) {
    const box = view.stage.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return;
    const image = data.images[state.image];
    const net = image.nets[number - 1];
    const sources = net ? [image.label, net.prediction, net.confidence] : [image.label];
    const [label, prediction, sure] = await Promise.all(sources.map(pixelsOf));
    let text = `label ${classAt(label, x, y)}`;
    if (net) text += `, ${view.name} ${classAt(prediction, x, y)} (${(colourAt(sure, x, y)[0] / 255).toFixed(2)})`;
    byId("pixel").textContent = text;
  }

  views.forEach((view, number) => view.stage.addEventListener("mousemove", (event) => point(view, number, event)));
  byId("views").addEventListener("mouseleave", () => { byId("pixel").textContent = "\u00a0"; });

  const names = (present) => present.map((index) => data.classes[index]).join(", ");

  function words(image, net) {
    if (!net) return "";
    if (net.mean_iu === undefined) return "not scored: no valid pixel";
    return `mean IU ${net.mean_iu.toFixed(3)}, pixel acc ${net.pixel_acc.toFixed(3)}`;
  }

  function draw(view, image, net) {
    // The first view shows the truth, whatever the others show, but for the photo alone
    const layer = net || state.layer === "image" ? state.layer : "label";
    const source = { image: "", label: image.label, ...net }[layer];
    view.photo.src = image.photo;
    view.photo.alt = `photo ${image.name}`;
    view.layer.hidden = !source;
    if (source) {
      view.layer.src = source;
      const present = layer === "label" ? image.present : net.present;
      view.layer.alt = `${layer}${net && layer !== "label" ? ` of ${view.name}` : ""}: ${names(present)}`;
    } else {
      view.layer.removeAttribute("src");
      view.layer.alt = "";
    }
    view.stage.style.aspectRatio = `${image.width} / ${image.height}`;
    view.caption.replaceChildren(element("strong", {}, net ? view.name : layer === "image" ? "photo" : "label"), ` ${words(image, net)}`);
  }

  function show(index, layer) {
    index = (index + data.images.length) % data.images.length;
    if (index !== state.image) pixels.clear();
    state.image = index;
    state.layer = layer;
    const image = data.images[state.image];
    views.forEach((view, i) => draw(view, image, image.nets[i - 1]));
    radios.forEach((radio) => { radio.checked = radio.value === layer; });
    byId("where").textContent = `${state.image + 1} of ${data.images.length}: ${image.name}`;
    thumbs.forEach((button, i) => {
      if (i === state.image) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
    byId("legend-classes").hidden = layer === "error" || layer === "confidence";
    byId("legend-errors").hidden = layer !== "error";
    byId("legend-confidence").hidden = layer !== "confidence";
    const present = new Set([image.present, ...image.nets.map((net) => net.present)].flat());
    for (const item of byId("legend-classes").children) {
      item.classList.toggle("absent", item.dataset.class !== "void" && !present.has(Number(item.dataset.class)));
    }
  }

  function blend() {
    byId("views").style.setProperty("--opacity", byId("opacity").value / 100);
    byId("views").classList.toggle("alone", !byId("underneath").checked);
  }

  radios.forEach((radio) => radio.addEventListener("change", () => show(state.image, radio.value)));
  byId("previous").addEventListener("click", () => show(state.image - 1, state.layer));
  byId("next").addEventListener("click", () => show(state.image + 1, state.layer));
  byId("opacity").addEventListener("input", blend);
  byId("underneath").addEventListener("change", blend);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, textarea")) return;
    // In these the arrows have a meaning of their own
    const isOwn = event.target.matches('input[type="range"], input[type="radio"], .wide');
    const layer = data.layers[Number(event.key) - 1];
    if (event.key === "ArrowLeft" && !isOwn) show(state.image - 1, state.layer);
    else if (event.key === "ArrowRight" && !isOwn) show(state.image + 1, state.layer);
    else if (layer) show(state.image, layer);
    else if (event.key === "p" || event.key === "P") byId("underneath").click();
    else return;
    event.preventDefault();
  });

  byId("gallery").hidden = false;
  blend();
  show(0, "prediction");
})();
