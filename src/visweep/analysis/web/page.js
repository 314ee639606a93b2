"use strict";
(() => {
  const PRINTED_WIDTH = 680;
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const charts = [...document.querySelectorAll(".chart")];
  let printing = false;

  function draw(chart) {
    // Parsed anew each time: Plotly writes into what it is given.
    const { data, layout } = JSON.parse(chart.nextElementSibling.textContent);
    layout.template = dark.matches && !printing ? themes.dark : themes.light;
    // A finger that drags scrolls the page; it does not zoom.
    layout.dragmode = touch ? false : "zoom";
    if (printing) {
      layout.width = chart.closest(".grid") ? PRINTED_WIDTH / 2 - 10 : PRINTED_WIDTH;
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
