ended() {
    case $(why) in
    *"TIME LIMIT"* | *"NODE FAIL"* | *PREEMPT*) finish 143 "no-requeue $(why)" ;;
    *) finish 143 cancelled ;;
    esac
}
