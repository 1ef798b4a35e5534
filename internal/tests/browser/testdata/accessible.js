(() => {
  const faults = [];
  const seen = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const name = (element) => `${element.tagName.toLowerCase()}${element.id ? "#" + element.id : ""}${element.className && element.className.baseVal === undefined ? "." + element.className : ""} "${element.textContent.trim().slice(0, 40)}"`;

  // The document has a language, a title, one main heading, and headings that skip
  // no level.
  if (document.documentElement.lang !== "en") faults.push("no language");
  if (!document.title) faults.push("no title");
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(seen).map((h) => Number(h.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1) faults.push("not one h1");
  levels.reduce((before, level) => {
    if (level > before + 1) faults.push(`h${level} after h${before}`);
    return level;
  }, 0);
  for (const landmark of ["header", "main", "footer"]) {
    if (document.querySelectorAll(`body > ${landmark}`).length !== 1) faults.push(`no ${landmark}`);
  }

  // No id is there twice, and what is referred to exists.
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) faults.push(`id ${id} is there twice`);
  for (const attribute of ["aria-labelledby", "aria-describedby", "for", "popovertarget"]) {
    for (const element of document.querySelectorAll(`[${attribute}]`)) {
      for (const id of element.getAttribute(attribute).split(/\s+/)) {
        if (!document.getElementById(id)) faults.push(`${attribute} of ${name(element)}: there is no ${id}`);
      }
    }
  }

  // Fields have labels, and buttons have text or a label.
  for (const field of document.querySelectorAll("input, textarea, select")) {
    if (!field.labels.length) faults.push(`no label: ${name(field)}`);
  }
  for (const button of document.querySelectorAll("button, a")) {
    if (seen(button) && !button.innerText.trim() && !button.getAttribute("aria-label")) faults.push(`no text: ${name(button)}`);
  }

  // Controls are at least 24 pixels high and wide (WCAG 2.2, 2.5.8), but for links in
  // a sentence and checkboxes with a label.
  for (const control of document.querySelectorAll("button, .menu a, input:not([type=checkbox]), textarea")) {
    const box = control.getBoundingClientRect();
    if (seen(control) && (box.width < 24 || box.height < 24)) faults.push(`small: ${name(control)} ${box.width}x${box.height}`);
  }

  // Nothing is wider than the window.
  if (document.scrollingElement.scrollWidth > innerWidth) {
    const wide = [...document.querySelectorAll("body *")].filter((element) => element.getBoundingClientRect().right > innerWidth + 1);
    faults.push(`wider than the window: ${wide.slice(0, 3).map(name)}`);
  }

  // Texts have a contrast of 4.5, large ones of 3 (WCAG 2.2, 1.4.3). Only what is on
  // top is looked at: with a dialog, that is the dialog.
  const rgba = (color) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const background = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const layer = rgba(getComputedStyle(at).backgroundColor);
      layers.push(layer);
      if (layer[3] === 1) break;
    }
    return layers.reduceRight((below, layer) => over(layer, below), rgba("Canvas"));
  };
  const dialog = document.querySelector("dialog[open], .menu:popover-open");
  const walker = document.createTreeWalker(dialog || document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const element = text.parentElement;
    if (!text.data.trim() || !seen(element) || element.closest("svg, noscript, script, :disabled, .unseen, .skip")) continue;
    if (element.closest("thead") && getComputedStyle(element.closest("thead")).position === "absolute") continue; // for screen readers
    const style = getComputedStyle(element);
    const below = background(element);
    const [a, b] = [luminance(over(rgba(style.color), below)), luminance(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const pixels = parseFloat(style.fontSize);
    const large = pixels >= 24 || (pixels >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) faults.push(`contrast ${ratio.toFixed(2)}: ${name(element)}`);
  }
  return faults;
})()
