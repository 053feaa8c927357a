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
    const button = element("button", { type: "button", "aria-label": `Image ${index + 1}: ${image.key}` }, picture);
    button.addEventListener("click", () => show(index, state.layer));
    byId("thumbs").append(button);
    return button;
  });

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
    view.photo.alt = `photo ${image.key}`;
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
    state.image = (index + data.images.length) % data.images.length;
    state.layer = layer;
    const image = data.images[state.image];
    views.forEach((view, i) => draw(view, image, image.nets[i - 1]));
    radios.forEach((radio) => { radio.checked = radio.value === layer; });
    byId("where").textContent = `${state.image + 1} of ${data.images.length}: ${image.key}`;
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
