// What `/react` is built from: the components with their styles. It has no declarations, which cannot name a style sheet.

import "./styles.css";

export * from "./index.js";
export { default } from "./index.js";
