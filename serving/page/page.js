// SPDX-License-Identifier: Apache-2.0
// Draws jobs anew that have changed: the server makes their HTML. Without JavaScript the page works, and is reloaded.
"use strict";

const videos = document.getElementById("videos");
const model = document.querySelector("select[name=model]");
const sizes = document.querySelector("select[name=page_size]");
const away = document.getElementById("away");
const image = document.querySelector("input[name=input_reference]");

function showSizes() {
  image.required = (model.selectedOptions[0]?.dataset.images ?? "").split(" ").includes("image");
  for (const option of sizes.options) {
    option.hidden = option.disabled = option.dataset.model !== model.value;
  }
  if (sizes.selectedOptions[0]?.disabled) {
    sizes.value = [...sizes.options].find((option) => !option.disabled)?.value ?? "";
  }
}

async function refresh() {
  let pause = 1000;
  try {
    const answer = await fetch("/page/videos");
    away.hidden = true;
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const cards = [...fresh.querySelectorAll("article, p.empty")];
      const kept = cards.map((card) => {
        const shown = card.id ? document.getElementById(card.id) : null;
        return shown && shown.dataset.state === card.dataset.state ? shown : document.adoptNode(card);
      });
      const same = kept.length === videos.children.length && kept.every((card, at) => card === videos.children[at]);
      if (!same) {
        videos.replaceChildren(...kept);
      }
      if (!fresh.querySelector("article.queued, article.in_progress")) {
        pause = 4000;
      }
    }
  } catch (error) {
    away.hidden = false;
    pause = 5000; // the server is away; its jobs are not
  }
  setTimeout(refresh, pause);
}

model.addEventListener("change", showSizes);
showSizes();
setTimeout(refresh, 500);
