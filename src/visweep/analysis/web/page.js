"use strict";
(() => {
  const PRINTED_WIDTH = 680;
  const PRINTED_HEIGHT = 0.8;
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(hover: none), (pointer: coarse)").matches;
  const settings = {
    responsive: true,
    displaylogo: false,
    showTips: false,
    // Named one by one: among Plotly's own there is one that uploads the figure.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    plotlyServerURL: "",
  };
  const charts = [...document.querySelectorAll(".chart")];
  let printing = false;

  function draw(chart) {
    // Parsed anew each time: Plotly writes into what it is given.
    const { data, layout } = JSON.parse(chart.nextElementSibling.textContent);
    layout.template = dark.matches && !printing ? themes.dark : themes.light;
    // A finger that drags scrolls the page; it does not zoom.
    const zoomable = "zoomable" in chart.dataset && !touch;
    layout.dragmode = zoomable ? "zoom" : false;
    const config = { ...settings, displayModeBar: zoomable ? "hover" : false };
    if (printing) {
      layout.width = chart.closest(".grid") ? PRINTED_WIDTH / 2 - 10 : PRINTED_WIDTH;
      layout.height *= PRINTED_HEIGHT;
    }
    return Plotly.react(chart, data, layout, config);
  }

  function drawAll() {
    charts.forEach(draw);
  }

  function print(starts) {
    printing = starts;
    for (const folded of document.querySelectorAll("details")) {
      if (starts) {
        folded.dataset.wasOpen = folded.open;
        folded.open = true;
      } else {
        folded.open = folded.dataset.wasOpen === "true";
      }
    }
    drawAll();
  }

  dark.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  drawAll();
})();
