// Read-outs under the pointer. Each line of data-read is a place from 0 to 1000 and a text.
for (const plot of document.querySelectorAll("[data-read]")) {
  const rows = plot.dataset.read.split("\n").map((line) => {
    const cut = line.indexOf(" ");
    return { at: Number(line.slice(0, cut)), text: line.slice(cut + 1) };
  });
  const make = (kind) => {
    const element = plot.appendChild(document.createElement("span"));
    element.className = kind;
    element.hidden = true;
    return element;
  };
  const rule = make("rule");
  const tip = make("tip");
  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * 1000;
    let best = rows[0];
    for (const row of rows) {
      if (Math.abs(row.at - at) < Math.abs(best.at - at)) best = row;
    }
    rule.hidden = tip.hidden = false;
    rule.style.left = best.at / 10 + "%";
    tip.textContent = best.text;
    const room = box.width - tip.offsetWidth;
    const wanted = (best.at / 1000) * box.width - tip.offsetWidth / 2;
    tip.style.left = Math.max(0, Math.min(room, wanted)) + "px";
  };
  const hide = () => {
    rule.hidden = tip.hidden = true;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", hide);
}
