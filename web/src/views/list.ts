/** All views of the page, in the order of the navigation. */

import { history } from "./history";
import { live } from "./live";
import { read } from "./read";
import { server } from "./server";
import { speak } from "./speak";
import { transcribe } from "./transcribe";
import type { View } from "./view";

export const views: readonly View[] = [transcribe, live, read, speak, history, server];
